// The library of a Climber.
#include "climber.h"
//
#include "run.h"
